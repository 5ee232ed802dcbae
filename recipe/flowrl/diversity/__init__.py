"""How different a system's answers are: measures with and without a judge, at equal numbers of answers."""
