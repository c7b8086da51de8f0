import java.io.BufferedOutputStream;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicLongArray;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.consumer.AcknowledgeType;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaShareConsumer;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicIdPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Workers of a share group: threads with a share consumer each, since a share consumer belongs to one thread; or, with
 * `consumers=N`, threads that share so many consumers.
 *
 * <p>Arguments are NAME=VALUE. `consumer.X` and `group.X` are settings of the consumers and of the group; `commit=poll` sends
 * acknowledgements with the next poll; with `failing=wait` a worker that fails keeps the record and tries it again; all others, the words on stdin and the lines on stdout are those of the Sluice worker: see tests/compare/src/{work,line}.rs.
 */
public final class ShareWorker {
    private static final long FLUSH_MILLIS = 5;
    private static final long LOOK_MILLIS = 10;
    private static final long RENEW_MILLIS = 5_000;
    private static final long WAIT_MILLIS = 1_000;

    private final Map<String, String> arguments = new HashMap<>();
    private final PrintStream out = new PrintStream(new BufferedOutputStream(System.out, 1 << 16), false, StandardCharsets.US_ASCII);
    private final int workers;
    private final long workMicros;
    private final long failFirstEvery;
    private final boolean quiet;
    private final boolean commits;
    private final boolean waits;
    private final int consumers;
    private final AtomicLong total = new AtomicLong();
    private final AtomicLongArray counts;
    private final AtomicLongArray busyMicros;
    private volatile boolean down;
    private volatile boolean paused;

    private ShareWorker(String[] words) {
        for (String word : words) {
            int at = word.indexOf('=');
            arguments.put(word.substring(0, at), word.substring(at + 1));
        }
        workers = Integer.parseInt(arguments.get("workers"));
        workMicros = Long.parseLong(arguments.get("work_us"));
        failFirstEvery = Long.parseLong(arguments.get("fail_first_every"));
        quiet = Boolean.parseBoolean(arguments.get("quiet"));
        commits = !"poll".equals(arguments.get("commit"));
        waits = "wait".equals(arguments.get("failing"));
        consumers = Integer.parseInt(arguments.getOrDefault("consumers", "" + workers));
        down = Boolean.parseBoolean(arguments.get("down"));
        counts = new AtomicLongArray(workers);
        busyMicros = new AtomicLongArray(workers);
    }

    public static void main(String[] words) throws Exception {
        new ShareWorker(words).run();
    }

    private void run() throws Exception {
        configureGroup();
        CountDownLatch subscribed = new CountDownLatch(consumers);
        Pool pool = consumers < workers ? new Pool() : null;
        for (int consumer = 0; consumer < consumers; consumer++) {
            int number = consumer;
            new Thread(() -> consume(number, subscribed, pool), "consumer-" + consumer).start();
        }
        Thread obey = new Thread(this::obey, "stdin");
        obey.setDaemon(true);
        obey.start();
        subscribed.await();
        say("ready");
        long said = 0;
        // Quiet workers are measured: one write for many lines.
        while (true) {
            Thread.sleep(FLUSH_MILLIS);
            long now = total.get();
            if (quiet && now != said) {
                said = now;
                say("n " + nowMicros() + " " + now);
            }
            synchronized (out) {
                out.flush();
            }
        }
    }

    /** The workers, where consumers share them. */
    private final class Pool {
        private final AtomicInteger started = new AtomicInteger();
        private final ThreadLocal<Integer> worker = ThreadLocal.withInitial(started::getAndIncrement);
        private final ExecutorService threads = Executors.newFixedThreadPool(workers);

        /** Works on all of them at once, and waits: what an explicit consumer was given must be acknowledged before it polls again. */
        private List<Future<Boolean>> work(ConsumerRecords<byte[], byte[]> records) throws InterruptedException {
            List<Callable<Boolean>> works = new ArrayList<>();
            records.forEach(record -> works.add(() -> ShareWorker.this.work(worker.get(), record)));
            return threads.invokeAll(works);
        }
    }

    private void consume(int worker, CountDownLatch subscribed, Pool pool) {
        try (KafkaShareConsumer<byte[], byte[]> consumer = new KafkaShareConsumer<>(consumerConfig())) {
            consumer.subscribe(List.of(arguments.get("topic")));
            subscribed.countDown();
            if (Boolean.parseBoolean(arguments.get("hold"))) {
                hold(worker, consumer);
            }
            while (true) {
                ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofSeconds(1));
                Iterator<Future<Boolean>> pooled = pool == null ? null : pool.work(records).iterator();
                List<ConsumerRecord<byte[], byte[]>> accepted = new ArrayList<>();
                for (ConsumerRecord<byte[], byte[]> record : records) {
                    boolean works = pooled == null ? work(worker, record) : pooled.next().get();
                    consumer.acknowledge(record, works ? AcknowledgeType.ACCEPT : AcknowledgeType.RELEASE);
                    if (works && !quiet) {
                        accepted.add(record);
                    }
                }
                // As in the example of KafkaShareConsumer's documentation; without it acknowledgements go out with the next poll.
                if (commits && !records.isEmpty()) {
                    confirm(worker, accepted, consumer.commitSync());
                }
            }
        } catch (Exception error) {
            say("error worker " + worker + ": " + error);
        }
    }

    /** Says which acknowledgements the broker has stored, and which it refused. */
    private void confirm(int worker, List<ConsumerRecord<byte[], byte[]>> accepted, Map<TopicIdPartition, Optional<KafkaException>> answers) {
        Set<Integer> refused = new HashSet<>();
        answers.forEach((partition, error) -> error.ifPresent(why -> {
            refused.add(partition.partition());
            say("error worker " + worker + ": " + partition + ": " + why);
        }));
        accepted.stream().filter(record -> !refused.contains(record.partition())).forEach(record -> say('c', nowMicros(), worker, record));
    }

    private boolean work(int worker, ConsumerRecord<byte[], byte[]> record) throws InterruptedException {
        while (paused) {
            Thread.sleep(LOOK_MILLIS);
        }
        long from = nowMicros();
        say('d', from, worker, record);
        if (workMicros > 0) {
            TimeUnit.MICROSECONDS.sleep(workMicros);
        }
        while (waits && down) {
            say('f', nowMicros(), worker, record);
            Thread.sleep(WAIT_MILLIS);
            say('d', nowMicros(), worker, record);
        }
        boolean first = record.deliveryCount().orElse((short) 1) == 1;
        boolean works = !down && !(first && failFirstEvery > 0 && record.offset() % failFirstEvery == 0);
        long until = nowMicros();
        counts.incrementAndGet(worker);
        busyMicros.addAndGet(worker, until - from);
        total.incrementAndGet();
        say(works ? 'a' : 'f', until, worker, record);
        return works;
    }

    /** Keeps what it is given, for ever. A poll gives a renewed record once more. */
    private void hold(int worker, KafkaShareConsumer<byte[], byte[]> consumer) throws InterruptedException {
        Set<Long> held = new HashSet<>();
        while (true) {
            for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                if (held.add(record.offset())) {
                    say('d', nowMicros(), worker, record);
                }
                consumer.acknowledge(record, AcknowledgeType.RENEW);
            }
            consumer.commitSync();
            Thread.sleep(held.isEmpty() ? 0 : RENEW_MILLIS);
        }
    }

    private void obey() {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
        in.lines().forEach(word -> {
            switch (word) {
                case "down" -> down = true;
                case "up" -> down = false;
                case "pause" -> paused = true;
                case "go" -> paused = false;
                case "report" -> report();
                default -> say("error no such word: " + word);
            }
        });
    }

    /** What each worker did since the last report. */
    private void report() {
        for (int worker = 0; worker < workers; worker++) {
            say("w " + worker + " " + counts.getAndSet(worker, 0) + " " + busyMicros.getAndSet(worker, 0));
        }
    }

    private Properties consumerConfig() {
        Properties config = new Properties();
        config.put("bootstrap.servers", arguments.get("address"));
        config.put("group.id", arguments.get("group"));
        config.put("key.deserializer", ByteArrayDeserializer.class);
        config.put("value.deserializer", ByteArrayDeserializer.class);
        config.put("share.acknowledgement.mode", "explicit");
        config.putAll(settings("consumer."));
        return config;
    }

    private void configureGroup() throws Exception {
        Collection<AlterConfigOp> changes = new ArrayList<>();
        settings("group.").forEach((key, value) -> changes.add(new AlterConfigOp(new ConfigEntry(key, value), AlterConfigOp.OpType.SET)));
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", arguments.get("address")))) {
            ConfigResource group = new ConfigResource(ConfigResource.Type.GROUP, arguments.get("group"));
            admin.incrementalAlterConfigs(Map.of(group, changes)).all().get();
        }
    }

    private Map<String, String> settings(String prefix) {
        Map<String, String> found = new TreeMap<>();
        arguments.forEach((key, value) -> {
            if (key.startsWith(prefix)) {
                found.put(key.substring(prefix.length()), value);
            }
        });
        return found;
    }

    private void say(char what, long atMicros, int worker, ConsumerRecord<byte[], byte[]> record) {
        if (!quiet) {
            say(what + " " + atMicros + " " + worker + " " + record.partition() + " " + record.offset());
            // An ack is said before it is sent, or a kill in between would make it look lost.
            synchronized (out) {
                out.flush();
            }
        }
    }

    private void say(String line) {
        synchronized (out) {
            out.append(line).append('\n');
        }
    }

    private static long nowMicros() {
        Instant now = Instant.now();
        return now.getEpochSecond() * 1_000_000 + now.getNano() / 1_000;
    }
}
