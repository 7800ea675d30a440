"""The operator's command line; talks to Temporal only."""
