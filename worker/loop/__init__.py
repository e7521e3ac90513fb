"""The main loop and what it owns. Nothing here knows Kafka, a model or telemetry: it declares what it needs."""
