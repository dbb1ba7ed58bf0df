"""The command line: parsers made from the settings, and the one way in which a script starts and ends."""
