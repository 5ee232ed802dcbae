"""The commands, a module each: its options, its examples, and what it calls. What takes long to import is imported when
it runs, so that a help text comes at once.
"""
