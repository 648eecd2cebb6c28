// What the server is asked, and how its answers are read.

export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The models that can be asked. */
export async function listModels(key) {
  return (await (await fetched("v1/models", { headers: headers(key) })).json()).data;
}

/** The chunks of an answer, as they come. Leaving the loop, or aborting the signal, ends the work on the server. */
export async function* answerChunks(body, key, signal) {
  const options = { method: "POST", headers: { ...headers(key), "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  const response = await fetched("v1/chat/completions", options);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message);
    yield chunk;
  }
  throw new ApiError("The connection ended before the answer did.");
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function fetched(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (!response.ok) throw await refused(response);
  return response;
}

async function refused(response) {
  const said = await response.json().then((body) => body.error?.message).catch(() => undefined);
  const seconds = response.headers.get("Retry-After");
  const later = seconds ? ` Try again in ${seconds} s.` : "";
  return new ApiError(`${said || `The server answers ${response.status}.`}${later}`, response.status);
}

/** The data of server-sent events; comments keep the connection alive and are skipped. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (text + value).replaceAll("\r\n", "\n").split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
