import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtSession;
import com.alibaba.fastjson2.JSON;
import com.alibaba.fastjson2.JSONObject;
import com.alibaba.fastjson2.JSONReader;
import com.alibaba.fastjson2.JSONWriter;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.Callback;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * The worker's JSON job by hand in Java: consume, decode and run in batches, the same full JSON result, at least once
 * (offsets are committed behind acknowledged outputs). No dead letters, no limits, no metrics: what is to be reached.
 */
public final class Loop implements ConsumerRebalanceListener {
    static final int FEATURES = 20, CLASSES = 10, TOP = 3;
    static final long COMMIT_NS = 500_000_000L;

    final JSONObject job;
    final int batch;
    final KafkaConsumer<byte[], byte[]> consumer;
    final KafkaProducer<byte[], byte[]> producer;
    final OrtEnvironment environment = OrtEnvironment.getEnvironment();
    final OrtSession session;
    final FloatBuffer features;
    final float[] scores = new float[CLASSES];
    final int[] best = new int[TOP];
    final ArrayDeque<Sent> sent = new ArrayDeque<>();
    final Map<TopicPartition, OffsetAndMetadata> acknowledged = new HashMap<>();
    volatile boolean running = true;

    public static void main(String[] arguments) throws Exception {
        new Loop(JSON.parseObject(Files.readAllBytes(Path.of(arguments[0])))).run();
    }

    Loop(JSONObject job) throws Exception {
        this.job = job;
        batch = job.getIntValue("batch");
        features = ByteBuffer.allocateDirect(batch * FEATURES * 4).order(ByteOrder.nativeOrder()).asFloatBuffer();
        OrtSession.SessionOptions options = new OrtSession.SessionOptions();
        options.setIntraOpNumThreads(1);
        session = environment.createSession(job.getString("model"), options);
        Map<String, Object> common = Map.of("bootstrap.servers", job.getString("bootstrap"));
        Map<String, Object> reading = new HashMap<>(common);
        reading.put("group.id", job.getString("group"));
        reading.put("enable.auto.commit", false);
        reading.put("auto.offset.reset", "earliest");
        reading.put("isolation.level", "read_committed");
        reading.put("session.timeout.ms", 45_000);
        reading.put("max.poll.records", 8 * batch);
        reading.put("fetch.max.bytes", 8 << 20);
        consumer = new KafkaConsumer<>(reading, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        Map<String, Object> writing = new HashMap<>(common);
        writing.put("acks", "all");
        writing.put("enable.idempotence", true);
        writing.put("linger.ms", 1);
        writing.put("compression.type", "lz4");
        writing.put("batch.size", 256 << 10);
        writing.put("buffer.memory", 64 << 20);
        producer = new KafkaProducer<>(writing, new ByteArraySerializer(), new ByteArraySerializer());
    }

    void run() throws Exception {
        Thread loop = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            running = false;
            try {
                loop.join(10_000);
            } catch (InterruptedException ignored) {
                // the process ends anyway
            }
        }));
        consumer.subscribe(List.of(job.getString("input")), this);
        long committed = System.nanoTime();
        while (running) {
            ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofMillis(sent.isEmpty() ? 100 : 1));
            answer(records, System.nanoTime(), System.currentTimeMillis());
            while (!sent.isEmpty() && sent.peek().left.get() == 0) {
                acknowledged.putAll(sent.poll().positions);
            }
            if (System.nanoTime() - committed > COMMIT_NS && !acknowledged.isEmpty()) {
                consumer.commitAsync(new HashMap<>(acknowledged), null);
                acknowledged.clear();
                committed = System.nanoTime();
            }
        }
        producer.close();
        consumer.commitSync(acknowledged);
        consumer.close();
    }

    /** One poll's records, partition by partition, in batches of at most {@code batch}. */
    void answer(ConsumerRecords<byte[], byte[]> records, long takenNs, long takenMs) throws Exception {
        ConsumerRecord<?, byte[]>[] rows = new ConsumerRecord[batch];
        Sent all = new Sent(records.count());
        int count = 0;
        for (TopicPartition partition : records.partitions()) {
            List<ConsumerRecord<byte[], byte[]>> part = records.records(partition);
            all.positions.put(partition, new OffsetAndMetadata(part.get(part.size() - 1).offset() + 1));
            for (ConsumerRecord<byte[], byte[]> record : part) {
                rows[count++] = record;
                if (count == batch) {
                    answer(rows, count, all, takenNs, takenMs);
                    count = 0;
                }
            }
        }
        if (count > 0) {
            answer(rows, count, all, takenNs, takenMs);
        }
        if (records.count() > 0) {
            sent.add(all);
        }
    }

    void answer(ConsumerRecord<?, byte[]>[] rows, int count, Sent all, long takenNs, long takenMs) throws Exception {
        long decoding = System.nanoTime();
        features.clear();
        for (int row = 0; row < count; row++) {
            decode(rows[row].value());
        }
        features.flip();
        long running = System.nanoTime();
        FloatBuffer answers;
        try (OnnxTensor x = OnnxTensor.createTensor(environment, features, new long[] {count, FEATURES});
                OrtSession.Result result = session.run(Map.of("x", x))) {
            answers = ((OnnxTensor) result.get(0)).getFloatBuffer();
        }
        long encoding = System.nanoTime();
        double queue = ms(decoding - takenNs), decode = ms(running - decoding), infer = ms(encoding - running);
        for (int row = 0; row < count; row++) {
            answers.get(scores);
            byte[] body = encode(rows[row], takenMs, queue, decode, infer, ms(System.nanoTime() - encoding));
            int partition = rows[row].partition() % job.getIntValue("outputs");
            producer.send(new ProducerRecord<>(job.getString("output"), partition, null, body), all);
        }
    }

    /** {@code {"features": [20 numbers]}} appended to the batch; anything else ends the process. */
    void decode(byte[] value) {
        try (JSONReader reader = JSONReader.of(value)) {
            if (!reader.nextIfObjectStart() || !"features".equals(reader.readFieldName()) || !reader.nextIfArrayStart()) {
                throw new IllegalArgumentException("not a record");
            }
            for (int i = 0; i < FEATURES; i++) {
                features.put(reader.readFloatValue());
            }
            if (!reader.nextIfArrayEnd()) {
                throw new IllegalArgumentException("not 20 features");
            }
        }
    }

    byte[] encode(
            ConsumerRecord<?, byte[]> record, long takenMs, double queue, double decode, double infer, double encode) {
        rank();
        double broker = Math.max(0, takenMs - record.timestamp());
        double total = Math.round((broker + queue + decode + infer + encode) * 1000) / 1000.0;
        try (JSONWriter w = JSONWriter.ofUTF8()) {
            w.startObject();
            text(w, "id", record.topic() + "/" + record.partition() + "/" + record.offset());
            object(w, "source");
            text(w, "topic", record.topic());
            name(w, "partition");
            w.writeInt32(record.partition());
            name(w, "offset");
            w.writeInt64(record.offset());
            name(w, "timestamp_ms");
            w.writeInt64(record.timestamp());
            w.endObject();
            object(w, "model");
            text(w, "name", "mlp");
            text(w, "version", "3f9c2a71");
            w.endObject();
            object(w, "prediction");
            label(w, best[0]);
            name(w, "top");
            w.startArray();
            for (int i = 0; i < TOP; i++) {
                if (i > 0) {
                    w.writeComma();
                }
                w.startObject();
                label(w, best[i]);
                w.endObject();
            }
            w.endArray();
            w.endObject();
            object(w, "latency_ms");
            number(w, "broker", broker);
            number(w, "queue", queue);
            number(w, "decode", decode);
            number(w, "wait", 0.0);
            number(w, "infer", infer);
            number(w, "encode", encode);
            number(w, "total", total);
            w.endObject();
            w.endObject();
            return w.getBytes();
        }
    }

    /** The three highest scores, the lower class first on a tie. */
    void rank() {
        for (int place = 0; place < TOP; place++) {
            int found = -1;
            for (int c = 0; c < CLASSES; c++) {
                boolean taken = place > 0 && c == best[0] || place > 1 && c == best[1];
                if (!taken && (found < 0 || scores[c] > scores[found])) {
                    found = c;
                }
            }
            best[place] = found;
        }
    }

    void label(JSONWriter w, int c) {
        text(w, "label", Integer.toString(c));
        name(w, "score");
        w.writeFloat(scores[c]);
    }

    static void name(JSONWriter w, String name) {
        w.writeName(name);
        w.writeColon();
    }

    static void object(JSONWriter w, String name) {
        name(w, name);
        w.startObject();
    }

    static void text(JSONWriter w, String name, String value) {
        name(w, name);
        w.writeString(value);
    }

    static void number(JSONWriter w, String name, double value) {
        name(w, name);
        w.writeDouble(value);
    }

    static double ms(long nanoseconds) {
        return nanoseconds / 1000 / 1000.0;
    }

    @Override
    public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
        System.err.println("\"assigned\"");
    }

    @Override
    public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
        acknowledged.keySet().removeAll(partitions);
    }

    /** Outputs of one poll on their way; told of each acknowledgement. */
    static final class Sent implements Callback {
        final AtomicInteger left;
        final Map<TopicPartition, OffsetAndMetadata> positions = new HashMap<>();

        Sent(int records) {
            left = new AtomicInteger(records);
        }

        @Override
        public void onCompletion(org.apache.kafka.clients.producer.RecordMetadata metadata, Exception error) {
            if (error != null) {
                error.printStackTrace();
                Runtime.getRuntime().halt(1); // what was not acknowledged is not committed and read again
            }
            left.decrementAndGet();
        }
    }
}
