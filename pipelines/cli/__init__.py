"""What every command needs of its command line: options, exit statuses, signals, what is said and how."""
