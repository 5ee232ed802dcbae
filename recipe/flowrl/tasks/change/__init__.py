"""Pay an amount with given coins: a small task with many right answers of different lengths."""
