// OpenAI's SDK for Node. Reads OPENAI_BASE_URL and OPENAI_API_KEY, as the SDK does. Prints the conversation that it
// has deleted.
const assert = require('node:assert/strict')
const { default: OpenAI } = require('openai')
const { zodTextFormat } = require('openai/helpers/zod')
const { z } = require('zod')

const client = new OpenAI({ maxRetries: 0 })
const model = 'chat'
const format = { format: zodTextFormat(z.object({ name: z.string(), age: z.number() }), 'person') }

async function responses() {
  const created = await client.responses.create({ model, input: 'one' })
  assert.equal(created.output_text, 'echo: one')
  assert.deepEqual((await client.responses.retrieve(created.id)).output, created.output)

  const stream = client.responses.stream({ model, input: 'two', previous_response_id: created.id })
  let text = ''
  stream.on('response.output_text.delta', (event) => { text += event.delta })
  const last = await stream.finalResponse()
  assert.equal(last.output_text, 'echo: one | two')
  assert.equal(text, last.output_text)

  const parsed = await client.responses.parse({ model, input: 'Who?', text: format })
  assert.deepEqual(parsed.output_parsed, { name: 'echo: Who?', age: 7 })
}

async function conversations() {
  const item = { type: 'message', role: 'user', content: 'My name is Ada.' }
  const { id } = await client.conversations.create({ items: [item], metadata: { a: '1' } })
  const answer = await client.responses.create({ model, input: 'Who am I?', conversation: id })
  assert.equal(answer.output_text, 'echo: My name is Ada. | Who am I?')

  const items = []
  for await (const item of client.conversations.items.list(id, { order: 'asc', limit: 2 })) items.push(item)
  assert.deepEqual(items.map((item) => item.role), ['user', 'user', 'assistant'])
  await client.conversations.items.delete(items[0].id, { conversation_id: id })
  assert.deepEqual((await client.conversations.update(id, { metadata: { a: '2' } })).metadata, { a: '2' })
  assert.equal((await client.conversations.delete(id)).deleted, true)
  await assert.rejects(client.conversations.retrieve(id), OpenAI.NotFoundError)
  console.log(id)
}

async function main() {
  await responses()
  await conversations()
}

main()
