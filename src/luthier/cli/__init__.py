"""The command line: one file a group of verbs, imported when it is called."""
