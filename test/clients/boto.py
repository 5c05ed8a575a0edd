"""boto3 driven by lines of JSON, [verb, a, b] each: put FILE KEY, get KEY FILE, copy FROM TO, list PREFIX, delete KEY, presign KEY, who."""
import json
import os
import sys

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

BUCKET = "artifacts"
endpoint = os.environ.get("BOTO_ENDPOINT")  # for a boto3 that does not know AWS_ENDPOINT_URL_S3
# Presigned URLs are SigV2 where the endpoint is not AWS's, unless SigV4 is asked for.
signature = "bearer" if "AWS_BEARER_TOKEN_S3" in os.environ else "s3v4"
s3 = boto3.client("s3", endpoint_url=endpoint, config=Config(signature_version=signature))
parts = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20)


def do(verb, a, b):
    if verb == "put":
        s3.upload_file(a, BUCKET, b, Config=parts)
    elif verb == "get":
        s3.download_file(BUCKET, a, b, Config=parts)
    elif verb == "copy":
        s3.copy_object(Bucket=BUCKET, Key=b, CopySource={"Bucket": BUCKET, "Key": a})
    elif verb == "list":
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=a)
        return [o["Key"] for page in pages for o in page.get("Contents", [])]
    elif verb == "delete":
        answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": a}]})
        assert not answer.get("Errors"), answer
    elif verb == "presign":
        return s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": a}, ExpiresIn=600)
    elif verb == "who":
        sts = boto3.client("sts", endpoint_url=endpoint or os.environ["AWS_ENDPOINT_URL_S3"])
        return sts.get_caller_identity()["Arn"]
    else:
        raise ValueError("no verb " + verb)


for line in sys.stdin:
    try:
        answer = {"out": do(*json.loads(line))}
    except Exception as e:
        answer = {"error": f"{type(e).__name__}: {e}"}
    print(json.dumps(answer), flush=True)
