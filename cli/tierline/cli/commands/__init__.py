"""One thin module per command; `tierline.cli.app` imports the one that is asked for."""
