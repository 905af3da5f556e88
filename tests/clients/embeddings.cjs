// The embeddings of OpenAI's SDK for Node and the Vercel AI SDK. Prints what each got for the same texts, as JSON.
const { openai } = require('@ai-sdk/openai')
const { embed, embedMany } = require('ai')
const { default: OpenAI, AzureOpenAI } = require('openai')

const [model, root] = process.argv.slice(2)
const texts = ['one', 'two']
const azure = { baseURL: null, endpoint: root, apiKey: process.env.OPENAI_API_KEY, apiVersion: '2024-10-21', deployment: model }

async function main() {
  const answers = []
  for (const client of [new OpenAI({ maxRetries: 0 }), new AzureOpenAI({ maxRetries: 0, ...azure })]) {
    for (const options of [{}, { encoding_format: 'float' }]) { // the first requests base64 and decodes it
      const { data } = await client.embeddings.create({ model, input: texts, ...options })
      answers.push(data.map((item) => item.embedding))
    }
  }
  const options = { model: openai.embedding(model), maxRetries: 0 }
  answers.push((await embedMany({ ...options, values: texts })).embeddings)
  answers.push(await Promise.all(texts.map(async (value) => (await embed({ ...options, value })).embedding)))
  console.log(JSON.stringify(answers))
}

main()
