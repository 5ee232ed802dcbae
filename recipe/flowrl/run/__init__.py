"""The life of a run: before it (doctor, submit), itself (launch), and after (status, replay)."""
