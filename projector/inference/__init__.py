"""The models at work: captions to embeddings, embeddings to pictures, pictures to hidden states."""
