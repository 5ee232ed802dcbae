"""Tasks, a folder each: its data, its reward, its base policy. ``public/`` holds the data sets of others."""
