"""The detached Ray actor that supervises a deployment, and its clients."""
