"""The verbs of the command line: each parses, calls and reports, and imports what is heavy when it is called."""
