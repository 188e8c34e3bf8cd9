// Headwater from Node: publish items and a click, ask for items that reflect the click, read the answer.
//
//   npm install && node ask.mjs [127.0.0.1:9092] [headwater.]
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Kafka, Partitioners, logLevel } from 'kafkajs';

const [broker = '127.0.0.1:9092', prefix = 'headwater.'] = process.argv.slice(2);
const kafka = new Kafka({ brokers: [broker], logLevel: logLevel.ERROR });
// The default partitioner hashes keys with murmur2, as Headwater does.
const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
// A group of our own: never one of Headwater's groups.
const consumer = kafka.consumer({ groupId: `my-shop-${randomUUID()}` });
const admin = kafka.admin();
await Promise.all([producer.connect(), consumer.connect(), admin.connect()]);

const publish = async (topic, key, value) =>
  (await producer.send({ topic: prefix + topic, messages: [{ key, value: JSON.stringify(value) }] }))[0];

for (const item of [
  { item_id: 'c1', title: 'Ground filter coffee', category: 'drinks', price: 5.9 },
  { item_id: 'c2', title: 'Espresso coffee beans', category: 'drinks', price: 8.5 },
]) {
  await publish('catalog.v1', item.item_id, item);
}
await sleep(2000); // a new item is searchable within a second

// Read answers from where they end now: an answer may come before the consumer has looked for the end.
const responses = `${prefix}responses.v1`;
const ends = await admin.fetchTopicOffsets(responses);
const requestId = randomUUID();
let read;
const answered = new Promise((resolve) => (read = resolve));
await consumer.subscribe({ topic: responses });
await consumer.run({
  eachMessage: async ({ message }) => {
    const answer = JSON.parse(message.value.toString());
    if (answer.request_id === requestId) read(answer);
  },
});
for (const { partition, high } of ends) consumer.seek({ topic: responses, partition, offset: high });

const user = process.env.SHOP_USER ?? 'ann';
const click = await publish('clicks.v1', user, {
  event_id: randomUUID(),
  user_id: user,
  item_id: 'c1',
  action: 'purchase',
  at_ms: Date.now(),
});
await publish('requests.v1', user, {
  request_id: requestId,
  user_id: user,
  limit: 5,
  filter: { category: 'drinks' },
  after: { partition: click.partition, offset: click.baseOffset }, // kafkajs gives offsets as strings; both are taken
  deadline_ms: 10000,
});
console.log(JSON.stringify(await answered));
await Promise.all([producer.disconnect(), consumer.disconnect(), admin.disconnect()]);
