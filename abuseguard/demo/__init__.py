"""`abuseguard demo`: a protected server, real HTTP requests at it from a request log, and what became of them.

The server is an ordinary FastAPI application in the shape of a chat API, under uvicorn, in a process of its own. The
driver replays a log at it over keep-alive connections. The guard runs on the log's own time: every request carries
its timestamp, and the server sets its clock by it, so that days of traffic pass in seconds and "600/minute" still means
600 in a minute of the log.
"""
