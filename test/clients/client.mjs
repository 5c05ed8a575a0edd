// The SDK for JavaScript driven by lines of JSON, [verb, a, b] each: put FILE KEY, get KEY FILE, copy FROM TO, list PREFIX,
// delete KEY, presign KEY, who.
import { createInterface } from "node:readline";
import { createReadStream, createWriteStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import {
  S3Client, GetObjectCommand, CopyObjectCommand, DeleteObjectsCommand, paginateListObjectsV2,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import { STSClient, GetCallerIdentityCommand } from "@aws-sdk/client-sts";

const Bucket = "artifacts";
const bearer = process.env.AWS_BEARER_TOKEN_S3;
const s3 = new S3Client(bearer ? {
  // No setting sends a bearer token to S3, but a signer of one's own is a setting.
  credentials: { accessKeyId: "none", secretAccessKey: "none" },
  signer: { sign: async (request) => { request.headers.authorization = `Bearer ${bearer}`; return request; } },
} : {});

async function run(verb, a, b) {
  switch (verb) {
    case "put":
      await new Upload({ client: s3, params: { Bucket, Key: b, Body: createReadStream(a) }, partSize: 5 << 20 }).done();
      return;
    case "get": {
      const got = await s3.send(new GetObjectCommand({ Bucket, Key: a }));
      await pipeline(got.Body, createWriteStream(b));
      return;
    }
    case "copy": // the source is the caller's to encode, and this is how most do
      await s3.send(new CopyObjectCommand({ Bucket, Key: b, CopySource: encodeURIComponent(`${Bucket}/${a}`) }));
      return;
    case "list": {
      const keys = [];
      for await (const page of paginateListObjectsV2({ client: s3 }, { Bucket, Prefix: a })) {
        keys.push(...(page.Contents ?? []).map((o) => o.Key));
      }
      return keys;
    }
    case "delete": {
      const answer = await s3.send(new DeleteObjectsCommand({ Bucket, Delete: { Objects: [{ Key: a }] } }));
      if (answer.Errors?.length) throw new Error(JSON.stringify(answer.Errors));
      return;
    }
    case "presign":
      return getSignedUrl(s3, new GetObjectCommand({ Bucket, Key: a }), { expiresIn: 600 });
    case "who": // as GitHub's configure-aws-credentials does once it has credentials
      return (await new STSClient({ endpoint: process.env.AWS_ENDPOINT_URL_S3 }).send(new GetCallerIdentityCommand({}))).Arn;
  }
  throw new Error(`no verb ${verb}`);
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    answer = { out: await run(...JSON.parse(line)) };
  } catch (e) {
    answer = { error: `${e.name}: ${e.message}` };
  }
  console.log(JSON.stringify(answer));
}
