"""An OpenAI-compatible server with search inside: `app.py` is its surface, `scheduler.py` what shares the model."""
