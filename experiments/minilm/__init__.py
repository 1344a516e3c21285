"""`minilm`: a published sentence encoder of 22.7 million parameters, trained on as users do, recorded and traced."""
