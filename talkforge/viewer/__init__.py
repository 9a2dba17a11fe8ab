"""The page on which people look at clips, played by a local server: `talkforge view` and `talkforge audit`.

library.py    what the page shows of a data set: clips, video, what was measured
server.py     the server: addresses, security, decisions
page.html.j2, page.js, page.css   the page
"""
