// Headwater from Java: publish items and a click, ask for items that reflect the click, read the answer.
//
//   mvn -q dependency:copy-dependencies && java -cp 'target/dependency/*' Ask.java [127.0.0.1:9092] [headwater.]

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class Ask {
    private static final ObjectMapper JSON = new ObjectMapper();

    public static void main(String[] args) throws Exception {
        String broker = args.length > 0 ? args[0] : "127.0.0.1:9092";
        String prefix = args.length > 1 ? args[1] : "headwater.";
        String user = System.getenv().getOrDefault("SHOP_USER", "ann");
        Map<String, Object> config = Map.of("bootstrap.servers", broker);
        // Java's default partitioner hashes keys with murmur2, as Headwater does.
        try (var producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer());
                var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer())) {
            publish(producer, prefix + "catalog.v1", "c1",
                    Map.of("item_id", "c1", "title", "Ground filter coffee", "category", "drinks", "price", 5.9));
            publish(producer, prefix + "catalog.v1", "c2",
                    Map.of("item_id", "c2", "title", "Espresso coffee beans", "category", "drinks", "price", 8.5));
            Thread.sleep(2000); // a new item is searchable within a second

            // Read answers from where they end now: an answer may come before the consumer has looked for the end.
            List<TopicPartition> partitions = consumer.partitionsFor(prefix + "responses.v1").stream()
                    .map(found -> new TopicPartition(found.topic(), found.partition())).toList();
            consumer.assign(partitions);
            consumer.seekToEnd(partitions);
            partitions.forEach(consumer::position); // seeking waits for the first use of the position

            RecordMetadata click = publish(producer, prefix + "clicks.v1", user, Map.of(
                    "event_id", UUID.randomUUID().toString(),
                    "user_id", user,
                    "item_id", "c1",
                    "action", "purchase",
                    "at_ms", System.currentTimeMillis()));
            String requestId = UUID.randomUUID().toString();
            publish(producer, prefix + "requests.v1", user, Map.of(
                    "request_id", requestId,
                    "user_id", user,
                    "limit", 5,
                    "filter", Map.of("category", "drinks"),
                    "after", Map.of("partition", click.partition(), "offset", click.offset()),
                    "deadline_ms", 10_000));
            while (true) {
                for (var record : consumer.poll(Duration.ofSeconds(1))) {
                    JsonNode answer = JSON.readTree(record.value());
                    if (requestId.equals(answer.path("request_id").asText())) {
                        System.out.println(answer);
                        return;
                    }
                }
            }
        }
    }

    private static RecordMetadata publish(
            KafkaProducer<String, String> producer, String topic, String key, Map<String, ?> value) throws Exception {
        return producer.send(new ProducerRecord<>(topic, key, JSON.writeValueAsString(value))).get();
    }
}
