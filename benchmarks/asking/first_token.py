"""Ask an endpoint for one token until it answers, then print when that was. Standard library alone.

first_token.py HOST PORT
"""

import http.client
import json
import sys
import time

BODY = json.dumps({"model": "tiny", "prompt": "hi", "max_tokens": 1, "temperature": 0})


def answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request("POST", "/v1/completions", BODY, {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


while not answers(sys.argv[1], int(sys.argv[2])):
    time.sleep(0.1)
print(json.dumps({"at": time.time()}))
