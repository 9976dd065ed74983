// One scenario of the OpenAI Node SDK against a base URL; prints what came back as one JSON value.
import OpenAI from "openai";

const [baseURL, scenario] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const ask = {
  model: "tiny",
  messages: [{ role: "user", content: "Tell me about os.path" }],
  max_tokens: 8,
  temperature: 0,
};
const askResponses = { model: "tiny", input: "Tell me about os.path", max_output_tokens: 8, temperature: 0 };

async function text(stream) {
  let content = "";
  const usages = [];
  for await (const chunk of stream) {
    content += chunk.choices[0]?.delta?.content ?? "";
    if (chunk.usage) usages.push(chunk.usage);
  }
  return { content, usages };
}

const scenarios = {
  async chat() {
    const { choices, usage } = await client.chat.completions.create(ask);
    return { choices, usage };
  },
  async stream() {
    return text(await client.chat.completions.create({ ...ask, stream: true }));
  },
  async "stream-usage"() {
    return text(await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } }));
  },
  async responses() {
    const { output, usage, status } = await client.responses.create(askResponses);
    return { text: output[0].content[0].text, usage, status };
  },
  async "responses-stream"() {
    const kinds = [];
    let content = "";
    for await (const event of await client.responses.create({ ...askResponses, stream: true })) {
      if (event.type === "response.output_text.delta") content += event.delta;
      else kinds.push(event.type);
    }
    return { kinds, content };
  },
  async error() {
    try {
      await client.chat.completions.create({ ...ask, temperature: -3 });
    } catch (error) {
      return { name: error.constructor.name, status: error.status, error: error.error };
    }
    throw new Error("no error came");
  },
  async workflow() {
    const named = await client.chat.completions
      .create(ask, { headers: { "x-workflow-id": "node-wf", "x-workflow-node": "step-1" } })
      .asResponse();
    const other = new OpenAI({ baseURL: `${baseURL}/w/my-id/v1`, apiKey: "none", maxRetries: 0 });
    const prefixed = await other.chat.completions.create(ask).asResponse();
    await Promise.all([named.text(), prefixed.text()]);
    return {
      id: named.headers.get("x-workflow-id"),
      node: named.headers.get("x-workflow-node"),
      prefix: prefixed.headers.get("x-workflow-id"),
    };
  },
  async abort() {
    const stream = await client.chat.completions.create({ ...ask, max_tokens: 16000, ignore_eos: true, stream: true });
    let events = 0;
    for await (const _ of stream) {
      events += 1;
      if (events === 3) stream.controller.abort();
    }
    return { events, aborted: stream.controller.signal.aborted };
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
