"""Makes what a run needs before it starts: own tasks and base policies, and public data sets."""
