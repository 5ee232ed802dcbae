"""What verl 0.9.1 lacks, as plug-ins to its own extension points. Nothing here knows of any algorithm."""
