"""The APIs, a file each: their requests become `asked.Asked`, and events and answers what their clients read.

Read `openai_chat.py` first. A file has `ROUTES`: (method, path, handler), where a handler takes the service and the
request.
"""
