// Headwater from Go: publish items and a click, ask for items that reflect the click, read the answer.
//
//	go run . [127.0.0.1:9092] [headwater.]
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

type object = map[string]any

func main() {
	broker, prefix, user := "127.0.0.1:9092", "headwater.", "ann"
	if len(os.Args) > 1 {
		broker = os.Args[1]
	}
	if len(os.Args) > 2 {
		prefix = os.Args[2]
	}
	if name := os.Getenv("SHOP_USER"); name != "" {
		user = name
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()

	// franz-go's default partitioner hashes keys with murmur2, as Headwater does. With segmentio/kafka-go, set
	// Balancer: kafka.Murmur2Balancer{}.
	producer, err := kgo.NewClient(kgo.SeedBrokers(broker))
	must(err)
	defer producer.Close()
	publish := func(topic, key string, value object) *kgo.Record {
		body, err := json.Marshal(value)
		must(err)
		record := &kgo.Record{Topic: prefix + topic, Key: []byte(key), Value: body}
		stored, err := producer.ProduceSync(ctx, record).First()
		must(err)
		return stored
	}

	publish("catalog.v1", "c1", object{"item_id": "c1", "title": "Ground filter coffee", "category": "drinks", "price": 5.9})
	publish("catalog.v1", "c2", object{"item_id": "c2", "title": "Espresso coffee beans", "category": "drinks", "price": 8.5})
	time.Sleep(2 * time.Second) // a new item is searchable within a second

	// Read answers from where they end now: an answer may come before the consumer has looked for the end.
	ends, err := kadm.NewClient(producer).ListEndOffsets(ctx, prefix+"responses.v1")
	must(err)
	consumer, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumePartitions(ends.KOffsets()))
	must(err)
	defer consumer.Close()

	click := publish("clicks.v1", user, object{
		"event_id": rand.Text(),
		"user_id":  user,
		"item_id":  "c1",
		"action":   "purchase",
		"at_ms":    time.Now().UnixMilli(),
	})
	requestID := rand.Text()
	publish("requests.v1", user, object{
		"request_id":  requestID,
		"user_id":     user,
		"limit":       5,
		"filter":      object{"category": "drinks"},
		"after":       object{"partition": click.Partition, "offset": click.Offset},
		"deadline_ms": 10000,
	})
	for {
		fetches := consumer.PollFetches(ctx)
		must(fetches.Err())
		for _, record := range fetches.Records() {
			var answer struct {
				RequestID string `json:"request_id"`
			}
			if json.Unmarshal(record.Value, &answer) == nil && answer.RequestID == requestID {
				fmt.Println(string(record.Value))
				return
			}
		}
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
