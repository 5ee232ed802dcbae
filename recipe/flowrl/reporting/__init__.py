"""What a person sees of a run: the console while it trains, ``report.html`` when it is done."""
