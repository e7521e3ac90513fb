"""Late labels to live accuracy: results and labels are joined and compared. Pure: it knows no Kafka and no model."""
