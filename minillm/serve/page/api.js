// The server: the list of models, and answers as they come. A key is asked for when the server wants one.

let key = sessionStorage.getItem("minillm.key") ?? "";

export class Failure extends Error {}

async function call(path, options, ask) {
  for (;;) {
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const answer = await fetch(path, { ...options, headers });
    if (answer.status === 401) {
      const given = await ask();
      if (!given) throw new Failure("The server asks for a key.");
      key = given;
      sessionStorage.setItem("minillm.key", key);
    } else if (!answer.ok) throw new Failure(await said(answer));
    else return answer;
  }
}

async function said(answer) {
  const text = await answer.text();
  let message = text.slice(0, 500);
  try {
    message = JSON.parse(text).error.message ?? message;
  } catch { /* not one of the API's errors: shown as it is */ }
  const wait = answer.headers.get("retry-after");
  return `${message || answer.statusText} (${answer.status}${wait ? `, try again in ${wait} s` : ""})`;
}

export async function models(ask) {
  const answer = await call("v1/models", {}, ask);
  return (await answer.json()).data.map((each) => each.id);
}

// Yields the chunks of a streamed chat completion.
export async function* answers(request, ask, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const options = { method: "POST", headers: { "content-type": "application/json" }, body, signal };
  const answer = await call("v1/chat/completions", options, ask);
  for await (const data of events(answer.body)) {
    if (data.startsWith("[DONE]")) return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Failure(chunk.error.message ?? "The server ended the answer.");
    yield chunk;
  }
  throw new Failure("The connection ended before the answer did.");
}

// The data of server-sent events: of lines that begin with "data:", up to an empty line. Comments keep a connection.
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}
