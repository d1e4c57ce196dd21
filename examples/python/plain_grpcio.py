"""Streams a story with stock grpcio and stubs generated from the contract:

python3 -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. \\
    photon/v1/generation.proto photon/v1/integration.proto        # from PyPI's grpcio-tools
"""

import os

import grpc
from photon.v1 import generation_pb2, generation_pb2_grpc

request = generation_pb2.GenerateRequest(
    prompt={"text": "Once upon a time"},
    parameters={"max_tokens": 60, "sampling": {"temperature": 0.3}, "stop": {"strings": ["The end"]}},
)
with grpc.insecure_channel(os.environ.get("PHOTON_SERVER", "127.0.0.1:50051")) as channel:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    stream = stub.Generate(request, timeout=60, metadata=[("x-request-id", "example-1")])
    try:
        for response in stream:
            print(response.text, end="", flush=True)
        usage = response.result.usage
        print(f"\n({usage.prompt_tokens} + {usage.generated_tokens} tokens)")
    except grpc.RpcError as error:
        raise SystemExit(f"{error.code().name}: {error.details()}") from None
