"""What a trained model is worth: retrieval, question answering, entities, and the controls."""
