"""What happened: event types, the log, the folds from events to state."""
