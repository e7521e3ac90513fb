//! The worker's JSON job by hand in Rust on librdkafka: consume, decode and run in batches, the same full JSON result,
//! at least once (offsets are committed behind acknowledged outputs). No dead letters, no limits, no metrics.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ort::session::Session;
use ort::value::TensorRef;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

const FEATURES: usize = 20;
const CLASSES: usize = 10;
const COMMIT_EVERY: Duration = Duration::from_millis(500);

type Fallible<T> = Result<T, Box<dyn Error>>;

#[derive(serde::Deserialize)]
struct Job {
    model: String,
    bootstrap: String,
    broker: String,
    group: String,
    input: String,
    output: String,
    outputs: i32,
    batch: usize,
}

#[derive(serde::Deserialize)]
struct Record {
    features: [f32; FEATURES],
}

/// Outputs of one batch on their way, and where to commit once all are acknowledged.
struct Sent {
    left: AtomicUsize,
    positions: HashMap<i32, i64>,
}

struct Context;

impl ClientContext for Context {}

impl ConsumerContext for Context {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if matches!(rebalance, Rebalance::Assign(_)) {
            eprintln!("\"assigned\"");
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Arc<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Arc<Sent>) {
        if let Err((error, _)) = result {
            eprintln!("{error}");
            std::process::exit(1); // what was not acknowledged is not committed and read again
        }
        sent.left.fetch_sub(1, Ordering::Relaxed);
    }
}

fn main() -> Fallible<()> {
    let path = std::env::args().nth(1).ok_or("expected a job file")?;
    let job: Job = serde_json::from_slice(&std::fs::read(path)?)?;
    let stopped = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, stopped.clone())?;
    let consumer = consumer(&job)?;
    let producer = producer(&job)?;
    let mut work = Work::new(&job)?;
    consumer.subscribe(&[&job.input])?;
    let mut sent: VecDeque<Arc<Sent>> = VecDeque::new();
    let mut acknowledged: HashMap<i32, i64> = HashMap::new();
    let mut committed = Instant::now();
    while !stopped.load(Ordering::Relaxed) {
        let patience = Duration::from_millis(if sent.is_empty() { 100 } else { 1 });
        let mut messages = Vec::with_capacity(job.batch);
        let mut next = consumer.poll(patience);
        while let Some(message) = next {
            messages.push(message?);
            next = if messages.len() < job.batch { consumer.poll(Duration::ZERO) } else { None };
        }
        if !messages.is_empty() {
            sent.push_back(work.answer(&messages, &producer)?);
        }
        producer.poll(Duration::ZERO);
        while sent.front().is_some_and(|first| first.left.load(Ordering::Relaxed) == 0) {
            acknowledged.extend(sent.pop_front().unwrap().positions.iter());
        }
        if committed.elapsed() > COMMIT_EVERY && !acknowledged.is_empty() {
            consumer.commit(&positions(&job.input, &mut acknowledged)?, CommitMode::Async)?;
            committed = Instant::now();
        }
    }
    producer.flush(Duration::from_secs(10))?;
    Ok(())
}

/// The worker's own client properties, as far as they matter here.
fn consumer(job: &Job) -> Fallible<BaseConsumer<Context>> {
    let wait = if job.broker == "embedded" { "2" } else { "100" };
    Ok(ClientConfig::new()
        .set("bootstrap.servers", &job.bootstrap)
        .set("group.id", &job.group)
        .set("session.timeout.ms", "45000")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("queued.max.messages.kbytes", "8192")
        .set("fetch.max.bytes", "8388608")
        .set("fetch.queue.backoff.ms", "2")
        .set("fetch.wait.max.ms", wait)
        .create_with_context(Context)?)
}

fn producer(job: &Job) -> Fallible<BaseProducer<Context>> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", &job.bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .set("compression.type", "lz4")
        .set("queue.buffering.max.messages", "100000")
        .create_with_context(Context)?)
}

fn positions(topic: &str, acknowledged: &mut HashMap<i32, i64>) -> Fallible<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in acknowledged.drain() {
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    }
    Ok(list)
}

/// The model and buffers that are used again for every batch.
struct Work<'a> {
    job: &'a Job,
    session: Session,
    features: Vec<f32>,
    scratch: Vec<u8>,
    body: Vec<u8>,
}

impl<'a> Work<'a> {
    fn new(job: &'a Job) -> Fallible<Self> {
        let session = Session::builder()?.with_intra_threads(1)?.commit_from_file(&job.model)?;
        Ok(Self { job, session, features: Vec::new(), scratch: Vec::new(), body: Vec::new() })
    }

    /// One batch from its messages to the producer.
    fn answer(&mut self, messages: &[BorrowedMessage<'_>], producer: &BaseProducer<Context>) -> Fallible<Arc<Sent>> {
        let taken = Instant::now();
        let taken_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
        self.features.clear();
        let mut positions = HashMap::new();
        for message in messages {
            self.scratch.clear();
            self.scratch.extend_from_slice(message.payload().ok_or("a record without a value")?);
            let record: Record = simd_json::serde::from_slice(&mut self.scratch)?;
            self.features.extend_from_slice(&record.features);
            positions.insert(message.partition(), message.offset() + 1);
        }
        let decoded = Instant::now();
        let shape = [messages.len(), FEATURES];
        let outputs = self.session.run(ort::inputs!["x" => TensorRef::from_array_view((shape, &*self.features))?])?;
        let (_, scores) = outputs[0].try_extract_tensor::<f32>()?;
        let inferred = Instant::now();
        let sent = Arc::new(Sent { left: AtomicUsize::new(messages.len()), positions });
        for (message, row) in messages.iter().zip(scores.chunks_exact(CLASSES)) {
            let broker = (taken_ms - message.timestamp().to_millis().unwrap_or(taken_ms)).max(0) as f64;
            let encode = inferred.elapsed();
            let times = Times { broker, decode: ms(decoded - taken), infer: ms(inferred - decoded), encode: ms(encode) };
            encode_result(&mut self.body, message, row, &times)?;
            send(self.job, producer, message.partition(), &self.body, &sent)?;
        }
        Ok(sent)
    }
}

fn send(job: &Job, producer: &BaseProducer<Context>, from: i32, body: &[u8], sent: &Arc<Sent>) -> Fallible<()> {
    let partition = from % job.outputs;
    let mut record = BaseRecord::<[u8], [u8], Arc<Sent>>::with_opaque_to(&job.output, sent.clone())
        .partition(partition)
        .payload(body);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                record = again;
                producer.poll(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}

struct Times {
    broker: f64,
    decode: f64,
    infer: f64,
    encode: f64,
}

fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// The full result, the three highest scores in it.
fn encode_result(body: &mut Vec<u8>, message: &BorrowedMessage<'_>, scores: &[f32], times: &Times) -> Fallible<()> {
    let best = top3(scores);
    let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
    let timestamp = message.timestamp().to_millis().unwrap_or(0);
    let mut floats = [ryu::Buffer::new(), ryu::Buffer::new(), ryu::Buffer::new()];
    let [b0, b1, b2] = &mut floats;
    let (s0, s1, s2) = (b0.format(scores[best[0]]), b1.format(scores[best[1]]), b2.format(scores[best[2]]));
    let [c0, c1, c2] = best;
    let Times { broker, decode, infer, encode } = *times;
    let total = ((broker + decode + infer + encode) * 1000.0).round() / 1000.0;
    body.clear();
    write!(
        body,
        r#"{{"id":"{topic}/{partition}/{offset}","source":{{"topic":"{topic}","partition":{partition},"offset":{offset},"timestamp_ms":{timestamp}}},"model":{{"name":"mlp","version":"3f9c2a71"}},"prediction":{{"label":"{c0}","score":{s0},"top":[{{"label":"{c0}","score":{s0}}},{{"label":"{c1}","score":{s1}}},{{"label":"{c2}","score":{s2}}}]}},"latency_ms":{{"broker":{broker},"queue":0.0,"decode":{decode},"wait":0.0,"infer":{infer},"encode":{encode},"total":{total}}}}}"#
    )?;
    Ok(())
}

/// The three highest, the lower class first on a tie.
fn top3(scores: &[f32]) -> [usize; 3] {
    let mut best = [usize::MAX; 3];
    for place in 0..3 {
        for class in 0..scores.len() {
            if best[..place].contains(&class) {
                continue;
            }
            if best[place] == usize::MAX || scores[class] > scores[best[place]] {
                best[place] = class;
            }
        }
    }
    best
}
