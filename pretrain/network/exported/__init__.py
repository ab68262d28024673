"""The narrow BERT for Hugging Face transformers: code on torch and transformers alone, which every export carries."""
