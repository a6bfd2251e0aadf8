"""moto's S3 server, with puts one at a time.

moto looks whether an object is there (`If-None-Match: *`) and stores it in two steps, on a thread for each request. On a
busy machine two writers can both find nothing, and both succeed: what a store of ours must never do.
"""
import threading

from moto.s3.responses import S3Response
from moto.server import main

LOCK = threading.RLock()


def alone(answer):
    def answer_alone(*arguments, **more):
        with LOCK:
            return answer(*arguments, **more)

    return answer_alone


# Objects that are put, and those whose pieces are put together.
for name in ("_key_response_put", "_key_response_post"):
    setattr(S3Response, name, alone(getattr(S3Response, name)))

main()
