"""The server: `python -m minillm.serve --weights PATH`.

Read in this order: `app.py` (which path is whose), `doors.py` (what every request passes), `apis/openai_chat.py` (a
request and its answer), `asked.py` (a request, whatever API it came by), `service.py` (how it becomes a job),
`answering.py` (what comes of it), `streaming.py`. `models/` has all models, and loads those that are asked for.
`answers/` takes apart what models write, `keys.py` says who may ask and how much, `connection.py` is the web server.
"""
