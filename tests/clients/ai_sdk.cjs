// The Vercel AI SDK. Reads OPENAI_BASE_URL and OPENAI_API_KEY, as its provider does.
const assert = require('node:assert/strict')
const { openai } = require('@ai-sdk/openai')
const { generateText, Output, stepCountIs, streamText, tool } = require('ai')
const { z } = require('zod')

const SUMS = process.argv[2] // three steps of tools
const numbers = z.object({ a: z.number(), b: z.number() })
const add = tool({ description: 'Add two numbers.', inputSchema: numbers, execute: async ({ a, b }) => a + b })
const options = { model: openai('chat'), maxRetries: 0, tools: { add }, stopWhen: stepCountIs(5) }

async function main() {
  const whole = await generateText({ ...options, prompt: SUMS })
  assert.equal(whole.text, 'results: 3, 7, 10')
  assert.deepEqual(whole.steps.map((step) => step.toolCalls.length), [2, 1, 0])

  // The SDK names the text of earlier answers by its id (item_reference).
  const messages = [{ role: 'user', content: SUMS }, ...whole.response.messages, { role: 'user', content: 'More?' }]
  const streamed = streamText({ ...options, messages })
  let text = ''
  for await (const delta of streamed.textStream) text += delta
  assert.equal(text, `echo: ${SUMS} | More?`)
  assert.equal(await streamed.finishReason, 'stop')

  const steps = streamText({ ...options, prompt: SUMS })
  await steps.consumeStream()
  assert.equal(await steps.text, 'results: 3, 7, 10')

  const previous = { providerOptions: { openai: { previousResponseId: whole.response.id } } }
  const continued = await generateText({ ...options, ...previous, prompt: 'More?' })
  assert.equal(continued.text, `echo: ${SUMS} | More?`)

  const person = Output.object({ schema: z.object({ name: z.string(), age: z.number() }) })
  const parsed = await generateText({ model: openai('chat'), maxRetries: 0, output: person, prompt: 'Who?' })
  assert.deepEqual(parsed.output, { name: 'echo: Who?', age: 7 })
}

main()
