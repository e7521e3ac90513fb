"""Records answered in this process, without Kafka: what ``import streaminfer`` gives."""
