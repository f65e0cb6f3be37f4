"""The server: the OpenAI API and a chat page on top of the engine."""
