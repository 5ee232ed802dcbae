"""What every package stands on: errors, files, signals, statistics. Imports no other package of the recipe."""
