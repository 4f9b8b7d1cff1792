"""The demo: a page in the browser that draws with a pipeline, on one's own machine or as a Space of the Hub.

`limits` holds the bounds of a call, `drawing` runs one with pictures on the way, `snippet` writes its code, `page` is
what the browser shows, `server` serves the page, and `space` makes a Space of it. Gradio is needed: the extra `demo`.
"""
