"""Consumes COUNT records of a subscription and acks each: python worker.py ADDRESS SUBSCRIPTION COUNT.

Only grpcio and the stubs that grpcio-tools generates from proto/ are used. Prints one line for each record.
"""

import queue
import sys

import grpc
from sluice.v1 import consumer_pb2 as pb
from sluice.v1 import consumer_pb2_grpc

# How long the whole may take before the call itself is given up.
TIMEOUT_S = 120


def main(address: str, subscription: str, count: int) -> None:
    outgoing: queue.SimpleQueue = queue.SimpleQueue()
    outgoing.put(
        pb.ConsumeRequest(
            subscribe=pb.Subscribe(subscription=subscription, flow=pb.Flow(max_records=50))
        )
    )
    with grpc.insecure_channel(address) as channel:
        stub = consumer_pb2_grpc.ConsumerServiceStub(channel)
        # `iter(get, None)` ends, and half-closes the stream, when None is put.
        stream = stub.Consume(iter(outgoing.get, None), timeout=TIMEOUT_S)
        acked = 0
        for frame in stream:
            kind = frame.WhichOneof("response")
            if kind == "ping":
                outgoing.put(pb.ConsumeRequest(pong=pb.Pong()))
            if kind != "delivery":
                continue
            settlements = []
            for batch in frame.delivery.batches:
                for record in batch.records:
                    print(f"{batch.topic} {batch.partition} {record.offset}")
                    acked += 1
                offsets = [pb.OffsetRange(first=record.offset) for record in batch.records]
                leases = pb.Leases(
                    topic=batch.topic, partition=batch.partition, epoch=batch.epoch, offsets=offsets
                )
                settlements.append(pb.Settlement(leases=leases, ack=pb.Ack()))
            settle = pb.Settlements(seen=frame.delivery.sequence, settlements=settlements)
            outgoing.put(pb.ConsumeRequest(settle=settle))
            if acked >= count:
                outgoing.put(None)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
