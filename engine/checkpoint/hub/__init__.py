"""Models on the Hugging Face Hub: what is there, what it would need here, and how it comes to this machine."""
