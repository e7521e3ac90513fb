"""What answers a record: the engine and what every answer carries."""
