"""An HTTP server of the shapes that OpenAI's clients speak, over `mmspec.serve.batcher`."""
