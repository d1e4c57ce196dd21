"""The stock tritonclient package, over KServe's protocol on the gRPC port: an answer, and a stream."""

import os
import queue

import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(os.environ.get("PHOTON_SERVER", "127.0.0.1:50051"))
model = client.get_model_repository_index().models[0].name


def text_input(*prompts):
    data = np.array([prompt.encode() for prompt in prompts], dtype=np.object_)
    tensor = triton.InferInput("text_input", data.shape, "BYTES")
    tensor.set_data_from_numpy(data)
    return tensor


answer = client.infer(model, [text_input("One day", "The fox")], parameters={"max_tokens": 16, "seed": 7})
for text, reason in zip(answer.as_numpy("text_output"), answer.as_numpy("finish_reason")):
    print(f"{text.decode()!r} ({reason.decode()})")

# As it comes: one response for each piece, on a thread of the client's.
responses = queue.Queue()
client.start_stream(lambda result, error: responses.put((result, error)))
client.async_stream_infer(
    model, [text_input("Once upon a time")], parameters={"max_tokens": 60, "temperature": 0.3}
)
final = False
while not final:
    result, error = responses.get()
    if error is not None:
        raise SystemExit(error)
    print(result.as_numpy("text_output").flatten()[0].decode(), end="", flush=True)
    final = result.get_response().parameters["triton_final_response"].bool_param
print()
client.stop_stream()
client.close()
