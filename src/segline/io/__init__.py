"""Sources read windows of files of any format, Sinks write masks back in the same format."""
